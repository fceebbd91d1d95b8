#!/usr/bin/env ruby
# frozen_string_literal: true

# Tests ksync.rb: against the database of DATABASE_URL, or sqlite3 in memory, and a made-up ksync-stream.
# Debian: apt install ruby-activerecord ruby-minitest, and ruby-sqlite3 or ruby-pg.

require "minitest/autorun"
require "minitest/mock"
require "open3"
require "rbconfig"
require "stringio"
require "timeout"
require "tmpdir"
require_relative "ksync"

ActiveRecord::Base.establish_connection(ENV["DATABASE_URL"] || { adapter: "sqlite3", database: ":memory:" })
ActiveRecord::Base.connection.instance_exec do
  create_table(:ksync_test_categories, force: true) { |t| t.timestamps }
  create_table(:ksync_test_products, force: true) do |t|
    t.string :name
    t.bigint :category_id
    t.timestamps
  end
  create_table(:ksync_test_vouchers, id: :string, force: true) do |t|
    t.integer :price
    t.timestamps
  end
end
Minitest.after_run do
  %i[categories products vouchers].each { |name| ActiveRecord::Base.connection.drop_table("ksync_test_#{name}") }
end

class Category < ActiveRecord::Base
  self.table_name = "ksync_test_categories"
  include Ksync::Model
end

class Product < ActiveRecord::Base
  self.table_name = "ksync_test_products"
  include Ksync::Model
  belongs_to :category, touch: true, optional: true
  attr_accessor :afterwards
  after_commit { raise name if name == "bad after_commit" }
  after_commit { afterwards&.call }
  validates :name, exclusion: ["invalid"]
end

# The same table, without announcements of its own.
class Note < ActiveRecord::Base
  self.table_name = "ksync_test_products"
  belongs_to :category, touch: true, optional: true
end

class Voucher < ActiveRecord::Base
  self.table_name = "ksync_test_vouchers"
  include Ksync::Model

  def self.kafka_topic = "coupons"
  def kafka_payload = { code: id, price: price, at: Time.utc(2020, 9, 13, 12, 26, 40) }
end

# As a model with a composite primary key has it, which ActiveRecord knows from 7.1 on.
class Pair < Product
  def id = [1, "a"]
end

class Measure < Product
  def id = [1, Time.utc(2020, 9, 13, 12, 26, 40, 120_000)]
end

class Fragile < Product
  def kafka_payload = { size: Integer(name) }
end

# Changes others as late as can be, and is not announced itself.
class Prelude < ActiveRecord::Base
  self.table_name = "ksync_test_products"
  before_commit { Product.create!(id: 99) }
end

class GemProduct < ActiveRecord::Base
  include Ksync::Model
end

module Gemns
  class Thing < ActiveRecord::Base
    include Ksync::Model
  end
end

# Says yes to everything, unless it is told what to say: an answer, :nothing, or :close. Notes what is forgotten with a
# connection that its application has closed.
class FakeServer
  attr_reader :events, :connections
  attr_writer :answer

  def initialize(path)
    @events, @connections, @dropped, @answer = [], [], [], ->(_request) { { ok: true } }
    @listener = UNIXServer.new(path)
    @accepting = Thread.new { loop { serve(@listener.accept) } }
  end

  def requests(op = nil)
    events.grep(Hash).select { |request| op.nil? || request["op"] == op }
  end

  # The keys that each request names.
  def keys(op)
    requests(op).map { |request| request["messages"].map { |message| message["key"] } }
  end

  # What has happened, in its order.
  def story
    events.map { |event| event.is_a?(Hash) ? event["op"] : event }
  end

  # What applications have said.
  def said
    story.grep(/\A(delay|instant|forgotten)\z/)
  end

  def wait_for(count)
    deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + 10
    until said.size >= count
      raise "only #{story}" if Process.clock_gettime(Process::CLOCK_MONOTONIC) > deadline
      sleep 0.005
    end
  end

  def drop_connections
    @dropped.concat(connections)
    connections.each { |socket| socket.shutdown unless socket.closed? }
  rescue SystemCallError # it was gone already
  end

  def stop
    @accepting.kill.join
    @listener.close
    drop_connections
  end

  private

  def serve(socket)
    number = connections.push(socket).size
    Thread.new do
      while (line = socket.gets)
        events << (request = JSON.parse(line).merge("connection" => number))
        answer = request["tx"] ? @answer.call(request) : { ok: false, error: "a request needs a tx" }
        break if answer == :close
        next if answer == :nothing
        events << "answered"
        socket.puts(JSON.generate({ id: request["id"], **answer }))
      end
      events << "forgotten" if request&.fetch("op") == "delay" && !@dropped.include?(socket)
    rescue SystemCallError, IOError # the other side is gone
      events << "unheard" unless @dropped.include?(socket)
    ensure
      socket.close
    end
  end
end

class KsyncTest < Minitest::Test
  NOT_KNOWN = { ok: false, error: 'tx "t" is not known here, or not any more; send its messages along' }.freeze
  KEYS = %w[KSYNC_SOCKET KSYNC_ANSWER_TIMEOUT KSYNC_ON_ERROR KSYNC_DISABLED].freeze

  def setup
    @folder = Dir.mktmpdir
    KEYS.each { |key| ENV.delete(key) }
    ENV["KSYNC_SOCKET"] = "#{@folder}/socket"
    [Category, Product, Voucher].each(&:delete_all)
    ActiveRecord::Base.logger = Logger.new(@log = StringIO.new, level: Logger::ERROR)
  end

  def teardown
    @server&.stop
    Ksync.sent = nil
    KEYS.each { |key| ENV.delete(key) }
    FileUtils.remove_entry(@folder)
  end

  def server
    @server ||= FakeServer.new(ENV["KSYNC_SOCKET"])
  end

  # What the server was asked, what the database was told of the end, in their order.
  def story
    server
    note = lambda do |*, payload|
      word = payload[:sql][/\A(commit|rollback)( transaction)?\z/i, 1]
      server.events << word.downcase if word
    end
    ActiveSupport::Notifications.subscribed(note, "sql.active_record") { yield }
    server.story
  end

  # As if so many seconds had gone by, as soon as the block calls what it is given.
  def wait_artificially(seconds)
    real, passed = Process.method(:clock_gettime), 0
    clock = ->(*of) { real.call(*of) + passed }
    Process.stub(:clock_gettime, clock) { yield -> { passed = seconds } }
  end

  # What had to be there before the commit, and what was.
  def assert_all_answered_before_the_commit(count, told)
    before = told.take_while { |event| event != "commit" }
    assert_equal [count, count], [before.count("delay"), before.count("answered")], told.to_s
    assert_includes told, "commit"
  end

  # With ids that are known beforehand.
  def products(*ids)
    ids.map { |id| Product.new(id: id) }
  end

  def test_a_change_is_committed_between_its_delay_and_its_instant_message
    told = story { @product = Product.create! }
    assert_equal %w[delay answered commit instant answered], told
    delay, instant = server.requests
    message = { "topic" => "products", "key" => @product.id.to_s, "payload" => { "id" => @product.id } }
    assert_equal [message], delay["messages"]
    assert_equal [[], delay["connection"]], instant.values_at("messages", "connection")
    assert_equal 2, server.requests.map { |request| request["id"] }.uniq.size
  end

  def test_updates_touches_and_destruction_are_changes_and_so_is_a_save_of_nothing
    server
    product = Product.create!
    [[:update!, { name: "b" }], [:save!], [:touch], [:destroy!]].each do |change, options|
      server.events.clear
      options ? product.public_send(change, **options) : product.public_send(change)
      assert_equal %w[delay instant], server.said, change.to_s
      assert_equal [[product.id.to_s]], server.keys("delay")
    end
    server.events.clear
    Product.create!(id: 99).update_column(:name, "c")
    assert_equal %w[delay instant], server.said
  end

  def test_all_changes_of_a_transaction_share_a_connection_and_are_sent_at_once
    server
    Product.transaction do
      product = Product.create!(id: 1)
      product.update!(name: "b")
      Voucher.create!(id: "x")
      server.wait_for(3)
    end
    assert_equal %w[delay delay delay instant], server.said
    assert_equal 1, server.requests.map { |request| request["connection"] }.uniq.size
    Product.create!(id: 2)
    assert_equal 2, server.requests.map { |request| request["connection"] }.uniq.size
  end

  def test_a_transaction_stays_one_when_those_before_it_are_garbage
    server
    5.times { Product.create! }
    server.events.clear
    Product.transaction { 3.times { Product.create!; GC.start } }
    assert_equal 1, server.requests.map { |request| request["connection"] }.uniq.size
  end

  def test_all_answers_are_there_before_the_commit
    server.answer = ->(request) { sleep 0.1 if request["op"] == "delay"; { ok: true } }
    told = story { Product.transaction { 3.times { Product.create! } } }
    before = told.take_while { |event| event != "commit" }
    assert_equal [3, 3], [before.count("delay"), before.count("answered")]
  end

  def test_what_was_sent_long_ago_goes_once_more_before_the_commit
    [[29, [%w[1], %w[2]]], [31, [%w[1], %w[2], %w[1 2]]]].each do |seconds, keys|
      Product.delete_all
      server.events.clear
      told = wait_artificially(seconds) do |wait|
        story { Product.transaction { products(1, 2).each(&:save!); wait.call } }
      end
      assert_all_answered_before_the_commit keys.size, told
      assert_equal [keys, [[]]], [server.keys("delay"), server.keys("instant")], "after #{seconds} s"
    end
  end

  def test_what_was_sent_long_ago_is_not_committed_where_it_cannot_go_once_more
    server
    wait_artificially(31) do |wait|
      error = assert_raises(Ksync::Error) do
        Product.transaction do
          Product.create!(id: 1)
          server.wait_for(1)
          server.stop
          File.delete(ENV["KSYNC_SOCKET"])
          wait.call
        end
      end
      assert_match(/\Aksync-stream is away: /, error.message)
    end
    @server = nil
    assert_equal 0, Product.count
  end

  def test_a_server_that_was_started_anew_in_a_long_transaction_is_told_all_before_the_commit
    told = wait_artificially(31) do |wait|
      story do
        Product.transaction do
          products(1, 2).each(&:save!)
          server.wait_for(2)
          server.drop_connections
          server.events.clear
          wait.call
        end
      end
    end
    assert_equal %w[delay answered commit instant answered], told
    assert_equal [%w[1 2]], server.keys("delay")
  end

  def test_all_of_an_age_is_counted_from_when_it_was_sent_last
    server
    wait_artificially(31) do |wait|
      Product.transaction do
        Product.create!(id: 1)
        server.wait_for(1)
        wait.call
        server.drop_connections
        Product.create!(id: 2) # which tells all to a new connection
      end
    end
    assert_equal [%w[1], %w[1 2]], server.keys("delay")
  end

  def test_a_rollback_forgets
    story do
      Product.transaction do
        Product.create!
        raise ActiveRecord::Rollback
      end
    end
    server.wait_for(2)
    assert_equal %w[delay forgotten], server.said
    assert_equal 1, server.requests.map { |request| request["connection"] }.uniq.size
    Product.create!
    assert_equal 2, server.requests.map { |request| request["connection"] }.uniq.size
  end

  def test_a_savepoint_that_is_rolled_back_ends_with_the_transaction_around_it
    server
    [false, true].each do |fails|
      server.events.clear
      Product.transaction do
        Product.transaction(requires_new: true) do
          Product.create!
          raise ActiveRecord::Rollback
        end
        raise ActiveRecord::Rollback if fails
      end
      server.wait_for(2)
      assert_equal ["delay", fails ? "forgotten" : "instant"], server.said
      assert_equal 0, Product.count
    end
  end

  def test_savepoints_that_are_kept_are_parts_of_one_transaction
    server
    Product.transaction do
      2.times { Product.transaction(requires_new: true) { Product.create! } }
      Product.create!
    end
    assert_equal %w[delay delay delay instant], server.said
    assert_equal 1, server.requests.map { |request| request["connection"] }.uniq.size
  end

  def test_within_a_test_of_rails_which_is_a_transaction_itself_commits_are_told
    server
    Product.transaction(joinable: false) do
      Product.create!(id: 1)
      Product.transaction do
        Product.create!(id: 2)
        raise ActiveRecord::Rollback
      end
      server.wait_for(4)
      assert_equal %w[delay instant delay forgotten], server.said
      raise ActiveRecord::Rollback
    end
    assert_equal 4, server.said.size
  end

  def test_what_joins_nobody_within_a_transaction_is_a_part_of_it
    told = story { within_what_joins_nobody }
    assert_equal %w[delay answered delay answered end commit instant answered], told
    assert_equal 1, server.requests.map { |request| request["connection"] }.uniq.size
    server.events.clear
    told = story { Product.transaction(joinable: false) { within_what_joins_nobody } } # as in a test of Rails
    assert_equal %w[delay answered delay answered end instant answered commit], told
  end

  def within_what_joins_nobody
    Product.delete_all
    Product.transaction do
      Product.transaction(joinable: false, requires_new: true) do
        Product.create!(id: 1)
        Ksync.bulk(products(2)) {}
      end
      server.events << "end"
    end
  end

  def test_what_is_changed_first_right_before_the_commit_is_waited_for_too
    server.answer = ->(request) { sleep 0.05 if request["op"] == "delay"; { ok: true } }
    assert_all_answered_before_the_commit 1, story { Prelude.create!(id: 1) }
    assert_equal [["99"]], server.keys("delay")
    server.answer = ->(_request) { { ok: false, error: "Kafka is away" } }
    Product.delete_all
    assert_raises(Ksync::Error) { Prelude.create!(id: 1) }
    assert_equal 0, Product.count
  end

  def test_what_belongs_to_touch_touches_right_before_the_commit_is_waited_for_too
    story { @category = Category.create! }
    [Product, Note].each do |model|
      server.events.clear
      server.answer = ->(request) { sleep 0.05 if request["op"] == "delay"; { ok: true } }
      before = story { model.create!(category: @category) }.take_while { |event| event != "commit" }
      assert_equal before.count("delay"), before.count("answered"), model.name
      topics = server.requests("delay").flat_map { |request| request["messages"].map { |message| message["topic"] } }
      assert_equal model == Note ? %w[categories] : %w[categories products], topics.uniq.sort
      assert_equal 1, server.requests("instant").size
    end
  end

  def test_a_transaction_in_which_nothing_was_changed_asks_nothing
    Product.transaction do # nobody listens
      Product.count
      refute Product.new(name: "invalid").save
    end
    assert_equal "", @log.string
  end

  def test_an_exception_in_an_after_commit_of_the_application_does_not_keep_the_instant_message_back
    server
    assert_raises(RuntimeError) do
      Product.transaction { [1, 2].each { |id| Product.create!(id: id, name: "bad after_commit") } }
    end
    assert_equal 1, server.requests("instant").size
  end

  def test_what_an_after_commit_changes_is_a_transaction_of_its_own
    server
    [true, false].each do |fails|
      Product.delete_all
      server.events.clear
      afterwards = lambda do
        Product.transaction do
          Product.create!(id: 2)
          raise ActiveRecord::Rollback if fails
        end
        server.wait_for(3)
      end
      Product.create!(id: 1, afterwards: afterwards)
      server.wait_for(4)
      assert_equal ["delay", "delay", fails ? "forgotten" : "instant", "instant"], server.said
      connections = server.requests.map { |request| request["connection"] }
      assert_equal connections.first, connections.last
      refute_equal connections[0], connections[1]
    end
    assert_equal "", @log.string
  end

  def test_a_key_that_changes_is_announced_as_both
    server
    product = Product.create!(id: 1, name: "a")
    voucher = Voucher.create!(id: "x")
    server.events.clear
    product.update!(id: 9)
    voucher.update!(id: "y")
    assert_equal [%w[9 1], %w[y x]], server.keys("delay")
    payloads = server.requests("delay").first["messages"].map { |message| message["payload"] }
    assert_equal [{ "id" => 9 }, { "id" => 1 }], payloads
    assert_equal [9, "a"], [product.id, product.reload.name]
  end

  def test_of_a_record_only_the_last_payload_is_sent_along
    ENV["KSYNC_ON_ERROR"] = "log"
    Product.transaction do
      voucher = Voucher.create!(id: "x", price: 1) # nobody listens
      [2, 1].each { |price| voucher.update!(price: price) }
      server
    end
    assert_equal [1], server.requests("instant").first["messages"].map { |message| message["payload"]["price"] }
  end

  def test_what_was_never_saved_is_not_announced_as_destroyed
    server
    Product.new.destroy
    Product.new(id: 1).destroy
    assert_equal [], server.requests
    Product.transaction { Product.create!(id: 2).destroy }
    assert_equal [%w[2], %w[2]], server.keys("delay")
    assert_equal 1, server.requests("instant").size
  end

  def test_what_is_refused_is_not_committed
    server.answer = ->(request) { request["op"] == "delay" ? { ok: false, error: "Kafka is away" } : { ok: true } }
    error = assert_raises(Ksync::Error) { Product.create! }
    assert_equal "ksync-stream says: Kafka is away", error.message
    assert_equal 0, Product.count
    server.wait_for(2)
    assert_equal %w[delay forgotten], server.said
  end

  def test_nor_is_it_where_the_exception_of_a_save_is_rescued
    error = assert_raises(Ksync::Error) do
      Product.transaction do
        assert_raises(Ksync::Error) { Product.create! } # nobody listens
        server # now somebody does
      end
    end
    assert_match(/\Aksync-stream is away: No such file or directory.*; is it running\?\z/, error.message)
    assert_equal 0, Product.count
  end

  def test_nor_is_it_where_a_payload_raises_and_that_is_rescued
    server
    error = assert_raises(ArgumentError) do
      Product.transaction do
        Product.create!(id: 1)
        assert_raises(ArgumentError) { Fragile.create!(id: 2, name: "x") }
        assert_raises(ArgumentError) { Product.create!(id: 3) }
      end
    end
    assert_equal 'invalid value for Integer(): "x"', error.message
    assert_equal 0, Product.count
  end

  def test_what_could_not_be_announced_but_was_undone_with_its_savepoint_keeps_nothing_from_the_commit
    server
    Product.transaction do
      Product.create!(id: 1)
      assert_raises(ArgumentError) do
        Product.transaction(requires_new: true) do
          Product.transaction(requires_new: true) { Fragile.create!(id: 2, name: "x") }
        end
      end
      Product.create!(id: 3)
    end
    assert_equal [1, 3], Product.order(:id).pluck(:id)
    assert_equal %w[1 3], server.keys("delay").flatten.uniq
    assert_equal 1, server.requests("instant").size
  end

  def test_what_could_not_be_announced_in_a_savepoint_that_is_kept_is_not_committed
    server
    assert_raises(ArgumentError) do
      Product.transaction do
        Product.transaction(requires_new: true) do
          assert_raises(ArgumentError) { Fragile.create!(id: 2, name: "x") }
        end
      end
    end
    assert_equal 0, Product.count
  end

  def test_what_was_not_waited_for_to_the_end_is_waited_for_before_the_commit
    server.answer = ->(request) { sleep 0.3 if request["op"] == "delay"; { ok: true } }
    told = story do
      Product.transaction do
        Product.create!(id: 1)
        assert_raises(Timeout::Error) { Timeout.timeout(0.1) { Ksync.bulk(products(2)) { flunk } } }
      end
    end
    assert_all_answered_before_the_commit told.count("delay"), told
    assert_equal %w[1 2], server.keys("delay").flatten.uniq
  end

  def test_with_on_error_log_it_is_committed_and_logged_once
    ENV["KSYNC_ON_ERROR"] = "log"
    Product.transaction do
      products(1, 2).each(&:save!)
      server # from now on somebody listens, and is told all
    end
    assert_equal 2, Product.count
    assert_equal [%w[1 2]], server.keys("instant")
    assert_equal [[], 1], [server.requests("delay"), @log.string.scan("a change is not announced").size]
    server.stop
    @server = nil
    File.delete(ENV["KSYNC_SOCKET"])
    Product.create!(id: 3)
    assert_equal 3, Product.count
    assert_match(/a commit is not announced at once: .*; nothing will bring up .*"key":"3"/, @log.string)
  end

  def test_with_on_error_log_what_was_refused_is_announced_after_the_commit
    ENV["KSYNC_ON_ERROR"] = "log"
    server.answer = ->(request) { request["op"] == "delay" ? { ok: false, error: "too many" } : { ok: true } }
    Product.transaction { products(1, 2).each(&:save!) }
    assert_equal [%w[1 2]], server.keys("instant")
    assert_match(/not announced: ksync-stream says: too many; going on/, @log.string)
  end

  def test_an_answer_that_does_not_come_in_time_fails_the_transaction
    ENV["KSYNC_ANSWER_TIMEOUT"] = "0.2"
    server.answer = ->(_request) { :nothing }
    error = assert_raises(Ksync::Error) { Product.create! }
    assert_equal "ksync-stream is away: Connection timed out - not within 0.2 s; is it running?", error.message
    assert_equal [0, 1], [Product.count, server.requests.size]
    server.answer = ->(_request) { { ok: true } }
    Product.create!
    assert_equal 2, server.connections.size
  end

  def test_after_the_commit_nothing_is_raised
    ENV["KSYNC_ANSWER_TIMEOUT"] = "0.2"
    [:nothing, :close, { ok: false, error: "Kafka is away" }].each do |answer|
      server.answer = ->(request) { request["op"] == "instant" ? answer : { ok: true } }
      @log.truncate(@log.rewind)
      Product.create!
      assert_match(/a commit is not announced at once: (ksync-stream is away|ksync-stream says: Kafka)/, @log.string)
    end
    assert_equal 3, Product.count
  end

  def test_a_server_that_was_started_anew_is_found
    story { Product.create!(id: 1) }
    server.stop
    File.delete(ENV["KSYNC_SOCKET"])
    @server = nil
    assert_equal %w[delay answered commit instant answered], story { Product.create!(id: 2) }
    assert_equal "", @log.string
  end

  def test_where_the_connection_breaks_within_a_transaction_the_new_one_is_told_all
    server
    Product.transaction do
      Product.create!(id: 1)
      server.wait_for(1)
      server.drop_connections
      Product.create!(id: 2)
    end
    assert_equal [%w[1], %w[1 2]], server.keys("delay")
    assert_equal [[[]], 2], [server.keys("instant"), server.connections.size]
  end

  def test_an_instant_request_that_fails_by_the_connection_or_the_tx_brings_its_messages
    [:close, NOT_KNOWN].each do |answer|
      server.events.clear
      server.answer = lambda do |request|
        request["op"] == "instant" && request["messages"].empty? ? answer : { ok: true }
      end
      Product.transaction { [1, 2].each { |id| Product.create!(id: id + Product.maximum(:id).to_i) } }
      first, second = server.keys("instant")
      assert_equal [[], server.keys("delay").flatten], [first, second]
    end
    assert_equal "", @log.string
  end

  def test_an_instant_request_that_is_refused_is_asked_once_more_with_all_messages
    said = "cannot send the instant messages, and not all delay messages were sent; announce the change once more"
    server.answer = lambda do |request|
      { ok: request["op"] == "delay" || request["messages"].any?, error: said }
    end
    Product.create!(id: 1)
    assert_equal [[[], %w[1]], ""], [server.keys("instant"), @log.string]
  end

  def test_topics_keys_and_payloads
    assert_equal %w[gem_products gemns-things coupons], [GemProduct, Gemns::Thing, Voucher].map(&:kafka_topic)
    server
    Voucher.create!(id: 'a "b"')
    payload = { "code" => 'a "b"', "price" => nil, "at" => "2020-09-13 12:26:40 UTC" }
    message = { "topic" => "coupons", "key" => 'a "b"', "payload" => payload }
    assert_equal [message], server.requests("delay").last["messages"]
    Ksync.bulk([Pair.new]) {}
    message = { "topic" => "pairs", "key" => '[1,"a"]', "payload" => { "id" => [1, "a"] } }
    assert_equal [message], server.requests("delay").last["messages"]
    Ksync.bulk([Measure.new]) {}
    at = "2020-09-13 12:26:40.120000" # as the database is told it: one without the fraction is that of another row
    message = { "topic" => "measures", "key" => %([1,"#{at}"]), "payload" => { "id" => [1, at] } }
    assert_equal [message], server.requests("delay").last["messages"]
  end

  def test_bulk_acknowledges_acts_and_announces
    Ksync.sent = []
    3.times { |n| Product.create!(id: n + 1) }
    Ksync.sent = nil
    told = story do
      result = Ksync.bulk(Product.order(:id)) do |records|
        server.events << "block"
        Product.where(id: records.map(&:id)).update_all(name: "b")
      end
      assert_equal 3, result
    end
    assert_equal %w[delay answered block instant answered], told - %w[commit]
    assert_equal [%w[1 2 3]], server.keys("delay")
    assert_equal :nothing, Ksync.bulk([]) { :nothing }
    assert_equal 2, server.requests.size
  end

  def test_bulk_loads_a_relation_once
    selects = 0
    count = ->(*, payload) { selects += 1 if payload[:name] != "SCHEMA" && payload[:sql].start_with?("SELECT") }
    Ksync.sent = []
    Product.create!
    ActiveSupport::Notifications.subscribed(count, "sql.active_record") { Ksync.bulk(Product.where(name: nil)) {} }
    assert_equal 1, selects
  end

  def test_bulk_whose_block_raises_announces_nothing
    server
    assert_raises(RuntimeError) { Ksync.bulk(products(1)) { raise "no" } }
    server.wait_for(2)
    assert_equal %w[delay forgotten], server.said
  end

  def test_bulk_whose_block_is_left_early_has_acted_and_announces
    server
    leave = -> { Ksync.bulk(products(1)) { return :returned } }
    assert_equal :returned, leave.call
    assert_equal :broken, (Ksync.bulk(products(2)) { break :broken })
    assert_equal %w[delay instant] * 2, server.said
  end

  def test_bulk_that_is_refused_does_not_act
    server.answer = ->(_request) { { ok: false, error: "no" } }
    assert_raises(Ksync::Error) { Ksync.bulk(products(1)) { flunk } }
  end

  def test_bulk_within_a_transaction_announces_after_the_commit
    told = story { Product.transaction { Ksync.bulk(products(1)) { Product.insert!({ id: 1, **times }) } } }
    assert_equal %w[delay answered commit instant answered], told
  end

  def times
    { created_at: Time.now, updated_at: Time.now }
  end

  def test_bulk_of_many_is_cut_into_requests
    server
    Ksync.bulk(products(*1..1001)) {}
    assert_equal [250, 250, 250, 250, 1], server.keys("delay").map(&:size)
    assert_equal (1..1001).map(&:to_s), server.keys("delay").flatten
  end

  def test_no_request_is_longer_than_the_16_mib_that_ksync_stream_takes
    server
    announcement = Ksync::Announcement.new
    long = ->(n) { %({"topic":"products","key":"#{n}","payload":"#{"é" * 300_000}"}) }
    announcement.add(wait: true) { (1..30).to_h { |n| [n, long[n]] } }
    assert_equal (1..30).map(&:to_s), server.keys("delay").flatten
    assert_operator server.keys("delay").map(&:size).max, :<, (16 << 20) / 600_000
  end

  def test_thousands_of_changes_do_not_fill_the_socket_with_answers
    server
    announcement = Ksync::Announcement.new
    5000.times { |n| announcement.add { { n => %({"topic":"products","key":"#{n}","payload":{"id":#{n}}}) } } }
    announcement.before_committed!
    announcement.committed!
    assert_equal [5000, 1], [server.requests("delay").size, server.requests("instant").size]
    assert_equal "", @log.string
  end

  def test_what_is_announced_outside_of_any_transaction_is_told_so
    server
    error = assert_raises(Ksync::Error) { Ksync.announce(Product.new(id: 1)) }
    assert_equal ["no transaction is open; use bulk", []], [error.message, server.requests]
    ENV["KSYNC_DISABLED"] = "1"
    assert_nil Ksync.announce(Product.new(id: 1))
  end

  def test_disabled_sends_nothing
    ENV["KSYNC_DISABLED"] = "1"
    Product.create!(id: 1).touch # nobody listens
    assert_equal [:done, 1], [Ksync.bulk(Product.all) { :done }, Product.count]
  end

  def test_an_application_can_collect_what_would_have_been_sent
    Ksync.sent = []
    Product.create!(id: 1) # nobody listens
    Product.transaction do
      Product.create!(id: 2)
      raise ActiveRecord::Rollback
    end
    message = ->(op, id) { { "op" => op, "topic" => "products", "key" => id.to_s, "payload" => { "id" => id } } }
    assert_equal [message["delay", 1], message["instant", 1], message["delay", 2]], Ksync.sent
    Ksync.sent.clear
    Ksync.bulk(products(3)) {}
    assert_equal [message["delay", 3], message["instant", 3]], Ksync.sent
  end

  def test_threads_do_not_read_each_others_answers
    server
    # Made here: a thread has no connection to the database, and in memory would get an empty one.
    products(*1..20).each_slice(5).map { |some| Thread.new { some.each { |one| Ksync.bulk([one]) {} } } }.each(&:join)
    assert_equal 20, server.connections.size
    assert_equal [20, 20], [server.requests("delay").size, server.requests("instant").size]
  end

  def test_a_transaction_that_is_over_has_no_connection_any_more
    server
    Ksync.bulk(products(1)) {}
    assert_raises(RuntimeError) { Ksync.bulk(products(2)) { raise "no" } }
    Timeout.timeout(10) { sleep 0.005 until server.connections.all?(&:closed?) }
  end

  def test_a_rollback_takes_the_answers_that_are_there_and_does_not_wait_long_for_others
    server.answer = ->(request) { sleep 5 if request["messages"].first["key"] == "2"; { ok: true } }
    begun = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    [[1, "answered"], [2, "delay"]].each do |id, event|
      Product.transaction do
        Product.create!(id: id)
        Timeout.timeout(5) { sleep 0.005 until server.story.last == event }
        raise ActiveRecord::Rollback
      end
      server.wait_for(2) if id == 1
    end
    assert_operator Process.clock_gettime(Process::CLOCK_MONOTONIC) - begun, :<, 4
    assert_equal %w[delay answered forgotten delay], server.story
  end

  def test_a_child_does_not_meddle_with_the_transaction_in_which_it_was_forked
    server
    announcement = Ksync::Announcement.new
    announcement.add(wait: true) { { 1 => '{"topic":"products","key":"1","payload":{}}' } }
    child = fork do
      announcement.rolledback!
      Ksync.bulk(products(2)) {}
      exit!(0)
    rescue Exception => error
      warn error.full_message
    ensure
      exit!(1)
    end
    assert_predicate Process.wait2(child).last, :success?
    announcement.committed!
    assert_equal [%w[1], %w[2]], server.keys("delay")
    instants = server.requests("instant").map { |request| request.values_at("connection", "messages") }
    assert_equal [[2, []], [1, []]], instants
  end
end

class WorkerTest < Minitest::Test
  RECORDS = [
    { topic: "products", partition: 0, offset: 42, ts: 1, key: "7", headers: [], payload: { id: 7, a: "x\u2028é" } },
    { topic: "products", partition: 0, offset: 43, ts: 1, key: "8", headers: [], payload: nil }
  ].freeze

  def batch(id, *more)
    begins = { type: "batch", id: id, topic: "products", partition: 0, term: 1, count: 2, attempt: 1 }
    [begins, *RECORDS, *more, { type: "end", id: id }]
  end

  # Its answers, what it wrote to stderr, its status.
  def work(block, *messages, last: [{ type: "shutdown" }])
    lines = [{ type: "hello", ksync: 1, name: "n" }, *messages.flatten, *last].map { |message| JSON.generate(message) }
    program = "require #{File.expand_path("ksync", __dir__).inspect}\nKsync.work { |records| #{block} }"
    input = lines.map { |line| "#{line}\n" }.join
    out, err, status = Open3.capture3({ "LC_ALL" => "C" }, RbConfig.ruby, "-e", program, stdin_data: input)
    [out.lines.map { |line| JSON.parse(line) }, err, status.exitstatus]
  end

  def ready = { "type" => "ready" }
  def done(id, failed = []) = { "id" => id, "type" => "done", "failed" => failed }

  def test_it_gets_the_records_of_each_batch_and_prints_to_stderr
    block = 'puts records.to_json; system("echo by a program; cat"); records'
    answers, err, status = work(block, batch("b1"), { type: "news" }, batch("b2"))
    assert_equal [[ready, done("b1"), done("b2")], 0], [answers, status]
    printed = err.force_encoding("UTF-8").lines(chomp: true)
    assert_equal 2, printed.count("by a program")
    assert_equal [JSON.parse(JSON.generate(RECORDS))] * 2, printed.grep(/\A\[/).map { |line| JSON.parse(line) }
  end

  def test_it_ends_with_its_input_too
    assert_equal [[ready, done("b1")], "", 0], work("", batch("b1"), last: [])
  end

  def test_records_that_failed_are_returned_or_raised
    bad = 'Ksync::Failed.new(records.last.merge("error" => "no", "permanent" => true))'
    failed = [{ "offset" => 43, "error" => "no", "permanent" => true }]
    assert_equal [ready, done("b1", failed)], work(bad, batch("b1")).first
    assert_equal [ready, done("b1", failed)], work("raise #{bad}", batch("b1")).first
    all = [{ "offset" => 42 }, { "offset" => 43 }]
    assert_equal [ready, done("b1", all)], work("raise Ksync::Failed.new(records)", batch("b1")).first
  end

  def test_an_error_says_that_the_store_is_away
    answers, = work('raise Ksync::Error, "away"', batch("b1"))
    assert_equal [ready, { "id" => "b1", "type" => "backoff", "ms" => 5000 }], answers
  end

  def test_any_other_exception_ends_it
    answers, err, status = work('raise "no idea"', batch("b1"), batch("b2"))
    assert_equal [[ready], 1], [answers, status]
    assert_match(/no idea/, err)
  end

  def test_a_batch_that_is_taken_back_is_forgotten
    answers, err, = work("warn records.size", batch("b1", { type: "cancel", id: "b1" }), batch("b2"))
    assert_equal [[ready, done("b2")], "2\n"], [answers, err]
  end
end
