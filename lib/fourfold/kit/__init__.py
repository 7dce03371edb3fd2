"""What the lessons share: device and scale, training, checkpoints, data, YAML, images, video, drawing."""
