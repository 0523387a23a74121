#!/bin/sh
# Three pictures of what dictionaries say of the model: pictures.sh MODEL TRANSCODERS FOLDER
set -eu
model=$1 transcoders=$2 folder=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"
draw() {
    tracer trace "$2" --model "$model" --transcoders "$transcoders" --max-features 1000 -o "$work/$1.graph"
    tracer render "$work/$1.graph" -o "$folder/$1.svg" --nodes 0.5 --edges 0.8
}
draw dallas "Fact: the capital of the state containing Dallas is"
draw opposite "The opposite of hot is"
draw paris "The Eiffel Tower is in the city of"
