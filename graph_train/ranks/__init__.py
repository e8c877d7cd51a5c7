"""Several processes as one job: who they are, how they meet, what they tell each other, who is lost."""
