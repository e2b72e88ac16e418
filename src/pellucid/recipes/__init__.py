"""Complete trainings on real data."""
