"""What several targets choose between: forms of operators, and the choice by measurement."""
