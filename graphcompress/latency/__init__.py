"""What heads and FFN nodes cost in time: measured latencies, and how much faster a cut model is."""
