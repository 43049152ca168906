"""Who is calling: credentials in, a proven caller out."""
