"""What the lessons share: device, scale, training, checkpoints, data, images, video, drawing."""
