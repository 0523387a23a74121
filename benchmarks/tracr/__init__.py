"""Programs whose circuits are known, compiled by Tracr, and the truth read off their labels."""
