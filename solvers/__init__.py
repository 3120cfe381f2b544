"""Solver backends behind one interface; a backend's library is imported only when the backend is used."""
