"""What the lessons share: device and scale, training, checkpoints, images, drawing."""
