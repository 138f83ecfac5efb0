"""The bidirectional scan by itself, against everything else that computes it or stands in its place."""
