"""Stage one: camera images become diffusion features and object agent queries."""
