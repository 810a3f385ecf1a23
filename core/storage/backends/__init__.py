"""Local disk, S3, every other fsspec file system."""
