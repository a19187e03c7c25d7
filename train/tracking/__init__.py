"""Where a run's numbers go beside its log: TensorBoard, Weights & Biases, MLflow."""
