"""Model packages: metadata and weights, all that is needed to predict."""
