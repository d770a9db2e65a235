"""The two pattern languages of the specs: key templates and dims patterns."""
