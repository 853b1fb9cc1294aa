"""Push and pull: caches and runs to and from the Hugging Face Hub, object stores and folders, file by file, checked."""
