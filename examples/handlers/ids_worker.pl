#!/usr/bin/env perl
# Prints the ids of each batch: a worker for ksync-consume --worker, one process for many batches.
# Its stdout is for answers, one JSON object a line; all else goes to stderr. It ends when it is told to, or stdin does.
use strict;
use warnings;
use JSON::PP;

$| = 1;    # what stays in a buffer is no answer
binmode STDERR, ':utf8';    # with :encoding(UTF-8) print would not tell that it failed
sub answer { print encode_json({@_}), "\n" }

my ($batch, @ids, @failed);
while (my $line = <STDIN>) {
    my $message = decode_json($line);
    my $type = $message->{type} // 'record';    # of our records none has a type
    if ($type eq 'hello') {
        answer(type => 'ready');
    } elsif ($type eq 'batch') {
        $batch = $message;
        @ids = @failed = ();
    } elsif ($type eq 'cancel' && $batch && $batch->{id} eq $message->{id}) {
        undef $batch;    # another process has it now: nothing of it is written, and no answer is due
    } elsif ($type eq 'end' && $batch) {
        # This line is where your store is written to; after it the batch may be called done.
        my $stored = print STDERR "$batch->{topic}/$batch->{partition}: @ids\n";
        # If the store is away, the batch comes again.
        answer($stored ? (type => 'done', failed => \@failed) : (type => 'backoff', ms => 5000), id => $batch->{id});
        undef $batch;
    } elsif ($type eq 'shutdown') {
        last;
    } elsif ($type eq 'record' && $batch) {
        exists $message->{payload} or die "offset $message->{offset}: no payload\n";
        my $payload = $message->{payload};
        # A tombstone (undef) says by its key what was deleted.
        my $id = defined $payload ? $payload->{id} : $message->{key};
        if (defined $id) { push @ids, $id }
        else { push @failed, {offset => $message->{offset}, error => 'no id', permanent => JSON::PP::true} }
    }
}
