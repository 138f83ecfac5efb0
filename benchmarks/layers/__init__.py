"""Temporal layers by themselves, at the shapes they have in the paper's U-Net: ours, as published, and their rivals."""
