"""What can be added, what each thing is given and promises, and how it is found."""
