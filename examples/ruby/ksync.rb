# ksync for ActiveRecord 6.1 and later (Ruby 3): announces changes through ksync-stream --serve, works on them.
#   class Product < ApplicationRecord; include Ksync::Model; end # may override self.kafka_topic and kafka_payload
#   Ksync.bulk(products) { Product.where(id: products.map(&:id)).update_all(featured: true) }
#   Ksync.work { |records| ... } # all that a program for ksync-consume --worker has to do
# KSYNC_SOCKET (/run/ksync/stream.sock), KSYNC_ANSWER_TIMEOUT (5, in seconds); KSYNC_ON_ERROR=log: what cannot be
# announced is committed all the same; KSYNC_DISABLED=1: nothing is sent. For tests: Ksync.sent = [] collects.
# What calls no callbacks is not seen and belongs into bulk: update_column(s), update_all, update_counters, increment!,
# counter caches, touch_all, delete, delete_all, insert_all, upsert_all, dependent: :delete_all or :nullify, SQL, and of
# the owner tags << tag and tag_ids = (HABTM, has_many :through). An outermost transaction(joinable: false) is taken for
# a test of Rails: what is within it is announced before its COMMIT.
%w[json logger socket active_record].each { |library| require library }

module Ksync
  class Error < StandardError; end

  # For the block of work to return, or to raise once all others are done: these records failed. To say why:
  # Failed.new(record.merge("error" => "no such category", "permanent" => true)).
  class Failed < Error
    attr_reader :records
    def initialize(*records) = @records = records.flatten.map { |record| record.slice("offset", "error", "permanent") }
  end

  module Model
    extend ActiveSupport::Concern
    included do
      # What was never saved can be destroyed all the same: nothing has changed.
      %i[after_save after_touch after_destroy].each { |on| public_send(on) { Ksync.announce(self) unless new_record? } }
    end
    class_methods { def kafka_topic = name.pluralize.underscore.tr("/", "-") }
    def kafka_payload = { id: ksync_id }
    def ksync_id # JSON would have times without their fractions
      id.is_a?(Array) ? id.map { |part| part.acts_like?(:time) ? self.class.connection.quoted_date(part) : part } : id
    end

    def ksync_message # its text, by topic and key
      named = { topic: self.class.kafka_topic, key: id.is_a?(Array) ? JSON.generate(ksync_id) : ksync_id&.to_s }
      [named, JSON.generate(**named, payload: kafka_payload)]
    end

    def ksync_before # what it was, where the save has changed its primary key
      key = Array(self.class.primary_key).to_h { |name| [name, attribute_before_last_save(name)] }
      return if key.value?(nil) || key <= attributes # it is new, or as before
      dup.tap { |old| attributes.merge(key).each { |name, value| old[name] = value } }
    end
  end

  # The changes of a transaction, among whose records it is: so ActiveRecord tells it of the end, whatever may raise.
  class Announcement
    # What was sent longer ago is sent again before the commit: the ksync-stream that was to do so from time to time may
    # be another one by now. Half of the shortest sensible delay, 1 min: the rest is for the commit.
    FRESH_SECS = 30

    # The callbacks before a commit may change something yet, even for the first time.
    module Last
      attr_accessor :ksync
      def before_commit_records = super.tap { ksync&.before_committed! }
      ActiveRecord::ConnectionAdapters::RealTransaction.superclass.prepend(self)
    end

    def self.of(model) # that of the transaction which its connection is in; nil outside of any
      connection = model.connection_pool.active_connection?
      return if Ksync.disabled? || !connection
      # The outermost that others join: all within ends with it, and around it is at most a test of Rails.
      root = connection.transaction_manager.instance_variable_get(:@stack).find(&:joinable?)
      root && root.ksync ||= new(connection).tap { |open| root.add_record(open) }
    end

    def initialize(connection = nil)
      @connection, @messages = connection, {}
    end

    # The block gives delay messages. They are sent at once; whether Kafka has them is seen before the commit.
    def add(wait: false)
      added = yield
      @messages.merge!(added) # of each record the last counts
      raise @failure if @failure && !@failed_in&.state&.rolledback? # whoever may have rescued it
      tell("delay", added.values, wait: wait)
    rescue StandardError => error
      is_new = !error.equal?(@failure)
      @failure, @failed_in, @is_told = error, @connection&.current_transaction, false if is_new
      raise unless ENV["KSYNC_ON_ERROR"] == "log"
      Ksync.log("a change is not announced: #{error.message}; going on") if is_new
    end

    def trigger_transactional_callbacks? = true
    def before_committed!(*) # an exception rolls back
      age = @since ? Process.clock_gettime(Process::CLOCK_MONOTONIC) - @since : 0
      add(wait: true) { age > FRESH_SECS ? @messages : {} }
    end

    def committed!(*)
      tell("instant", Ksync.sent ? @messages.values : [])
    rescue StandardError => error # it is committed, whatever happens here
      lost = "; nothing will bring up #{@messages.values.join(" ")}" if @failure
      Ksync.log("a commit is not announced at once: #{error.message}#{lost}")
    ensure
      rolledback!
    end

    def rolledback!(*) # it is forgotten with its connection
      @messages.clear
      # What was answered is read, lest we are taken for killed; Kafka may take longer than anybody waits.
      (@asked - @answered).times { @socket.wait_readable(0.1) && @socket.gets || break } if @pid == Process.pid
    rescue SystemCallError, IOError # it is closed
    ensure
      @socket&.close
    end

    # With all messages, by a new connection, unless the server was told all by this one.
    private def tell(op, messages, wait: true, again: false)
      return if @messages.empty?
      return Ksync.sent.concat(messages.map { |text| JSON.parse(text).merge("op" => op) }) if Ksync.sent
      is_told, @is_told = @is_told && @pid == Process.pid, false # somebody else's exception may end it before its end
      messages = @messages.values.tap { connect } unless is_told
      @since = Process.clock_gettime(Process::CLOCK_MONOTONIC) if messages.size == @messages.size
      ask(op, messages) unless op == "delay" && messages.empty?
      read if wait
      @is_told = true
    rescue Error, SystemCallError, IOError, JSON::ParserError => error
      raise if error.is_a?(Error) && (again || op == "delay")
      raise Error, "ksync-stream is away: #{error.message}; is it running?" if again || error.is_a?(Errno::ETIMEDOUT)
      again = true
      retry
    end

    private def connect # for this transaction alone: no thread reads another's answers
      @socket&.close
      @pid, @asked, @answered, @socket = Process.pid, 0, 0, Socket.new(:UNIX, :STREAM)
      @socket.connect_nonblock(Socket.sockaddr_un(ENV.fetch("KSYNC_SOCKET", "/run/ksync/stream.sock")))
    end

    private def ask(op, messages) # in requests of 250 or fewer: one may have 16 MiB
      count = 8_000_000.fdiv([32_000, *messages.map(&:bytesize)].max).ceil
      (messages.empty? ? [[]] : messages.each_slice(count)).each do |slice|
        read(100) # a socket holds some 270 answers; the server would wait, and we for it
        line = %({"id":#{@asked += 1},"tx":1,"op":"#{op}","messages":[#{slice.join(",")}]}\n)
        line = line.byteslice((await(:wait_writable) && @socket.write_nonblock(line))..) until line.empty?
      end
    end

    private def read(most = 0) # until no more answers than these are missing
      while @asked - @answered > most
        answer = JSON.parse(await(:wait_readable) && @socket.readline)
        @answered += 1
        raise Error, "ksync-stream says: #{answer["error"]}" unless answer["ok"]
      end
    end

    private def await(event)
      timeout = Float(ENV.fetch("KSYNC_ANSWER_TIMEOUT", "5"))
      @socket.public_send(event, timeout) || raise(Errno::ETIMEDOUT, "not within #{timeout} s")
    end
  end

  singleton_class.attr_accessor :sent
  def self.disabled? = ENV["KSYNC_DISABLED"] == "1"
  def self.log(text) = (ActiveRecord::Base.logger || Logger.new($stderr)).error("ksync: #{text}")
  def self.announce(record) # within a transaction
    open = Announcement.of(record.class) || raise(Error, "no transaction is open; use bulk") unless disabled?
    open&.add { [record, record.ksync_before].compact.to_h(&:ksync_message) }
  end

  # Delay messages for all records, acknowledged; the block; instant messages, within a transaction after its commit.
  def self.bulk(records)
    records = Array(records) # a relation is loaded, once; the block gets what it had
    return yield(records) if disabled? || records.empty?
    (Announcement.of(records.first.class) || own = Announcement.new).add(wait: true) { records.to_h(&:ksync_message) }
    yield(records)
  rescue Exception
    own&.rolledback!
    raise
  ensure # the block may also be left by return or break: what it did is done
    own&.committed!
  end

  # Ksync::Error from the block: the store is away. Others, but Failed, end the program. The batch comes again.
  def self.work
    input, output = $stdin.dup, $stdout.dup
    $stdin.reopen(File::NULL) # neither the block nor what it runs may take our lines, or print among them
    output.sync = $stdout.reopen($stderr).sync = true
    answer = ->(**said) { output.puts(JSON.generate(said)) } # and then there is no batch
    failed = ->(said) { said.is_a?(Failed) ? said.records : [] }
    batch = records = nil
    input.set_encoding("UTF-8").each_line do |line|
      message = JSON.parse(line)
      case message["type"]
      when nil then records << message # of our records none has a type
      when "hello" then answer[type: "ready"]
      when "batch" then batch, records = message["id"], []
      when "cancel" then batch = nil if batch == message["id"] # another process has it now
      when "end" then batch &&= answer[type: "done", id: batch, failed: failed[yield(records)]]
      when "shutdown" then break
      end
    rescue Failed => error
      batch = answer[type: "done", id: batch, failed: error.records]
    rescue Error
      batch = answer[type: "backoff", id: batch, ms: 5000]
    end
  end
end
