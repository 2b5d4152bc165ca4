"""What training runs are made of. Nothing here may know an agent, or a setting of one alone."""
