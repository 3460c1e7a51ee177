"""AdamW that accounts for the thermodynamics of training inside its own step."""
