"""The beat: rings what is due, on time, in as many processes as are started."""
