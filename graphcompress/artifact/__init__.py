"""The folder that a build makes: written whole or not at all, opened again, its parts and configuration."""
