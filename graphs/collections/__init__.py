"""Many graphs: in one folder of Parquet, compared, and taken together."""
