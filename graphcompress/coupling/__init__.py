"""What must be cut together: dimensions as atoms, their groups, and the layers that groups make."""
