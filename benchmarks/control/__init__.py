"""Control laws against tuned AdamW, Prodigy and Schedule-Free."""
