"""The commands, one module each: parse arguments, call one public function, print what it did."""
