"""Methods of composition against worked cases and laws."""
