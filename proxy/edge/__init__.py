"""HTTP on one side, Call and Reply on the other."""
