"""Words everyone uses: tensors, model specs, requests and errors. Imports nothing of the house."""
