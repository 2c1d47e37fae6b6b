"""Stand-ins for packages that vLLM imports for images alone; on the path only where the real ones are missing."""
