"""Converting: an adapter fitted to what another format can hold, written, and proven equal."""
