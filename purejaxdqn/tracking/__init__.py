"""Curves of a sweep in TensorBoard, Weights & Biases, Trackio or MLflow."""
