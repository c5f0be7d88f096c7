"""Results as pages that can be opened anywhere: one HTML file, nothing fetched."""
