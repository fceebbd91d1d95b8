#!/usr/bin/env perl
# Prints the ids of a batch: a handler for ksync-consume.
#
# Exit status: 0 done; 65 a record that will never work; 75 the store is away, the same batch comes again later; die makes
# it 1 here, and the batch comes again, too.
use strict;
use warnings;
use JSON::PP;

binmode STDOUT, ':utf8';
# die ends with the number of the last system error, which may be one that means something to ksync.
END { $? = 1 unless grep { $? == $_ } 0, 65, 75 }

my ($source, @ids) = ('');
while (my $line = <STDIN>) {    # to the end: a batch that was not read is not done
    my $record = decode_json($line);
    $source = "$record->{topic}/$record->{partition}";
    exists $record->{payload} or die "offset $record->{offset}: no payload\n";
    my $payload = $record->{payload};
    # A tombstone (undef) says by its key what was deleted.
    my $id = defined $payload ? $payload->{id} : $record->{key};
    if (!defined $id) {
        print STDERR "offset $record->{offset}: no id\n";
        exit 65;
    }
    push @ids, $id;
}

# This is where your store is written to; without close nobody would know that the last bytes were not.
if (!(print("$source: @ids\n") && close(STDOUT))) {
    print STDERR "the store is away: $!\n";
    exit 75;
}
