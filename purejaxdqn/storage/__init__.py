"""Everything on disk: arrays with checksums, the dataset file, where results come from."""
