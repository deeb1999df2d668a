#!/bin/sh
# Divides a file of novels, a paragraph per line, into train.txt, scorer.txt and held-out.txt in the current folder.
# Only paragraphs of 60 characters or more: the scorer never sees the model's text, and neither sees the last.
set -eu
part() { awk -v low="$1" -v high="$2" 'length($0) >= 60 && NR % 20 >= low && NR % 20 <= high' "$novels" > "$3"; }
novels=$1
part 0 11 train.txt
part 12 18 scorer.txt
part 19 19 held-out.txt
