"""Value ranges: how every operator moves an interval."""
