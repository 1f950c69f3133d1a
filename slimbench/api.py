"""The public function that stands for `slimbench sweep`."""
