"""What leaves for a device: the ORT format, the operators it needs, what its providers take, the bundle."""
