"""What the lessons share: device and scale, training, checkpoints, data, images, drawing."""
