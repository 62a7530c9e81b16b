"""ESM-2: any size of the protein language model, packed and without padding."""
