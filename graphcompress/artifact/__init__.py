"""What a build writes and reads: the artifact's folder, its manifest, the recipe that remakes it."""
