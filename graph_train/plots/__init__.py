"""Pictures of a run. Nothing heavy is imported before a picture is drawn, and no display or global state is used."""
