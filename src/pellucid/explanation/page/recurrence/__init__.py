"""The exhibit of a recurrent layer."""
