"""Files become recordings, clips with labels, and sides that share no patient."""
