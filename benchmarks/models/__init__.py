"""The U-Net with each temporal layer: memory and time against frames."""
