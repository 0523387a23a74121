"""Many graphs in one folder of Parquet."""
