"""The three phases of few-shot fine-tuning: `experiment corruption` and `experiment report`."""
