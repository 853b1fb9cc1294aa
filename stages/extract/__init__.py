"""Stage one: camera images become image features and object agent queries."""
